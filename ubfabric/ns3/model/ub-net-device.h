// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_NET_DEVICE_H
#define UB_NET_DEVICE_H

#include "ub-fabric.h"

#include "ns3/channel.h"
#include "ns3/mac48-address.h"
#include "ns3/net-device.h"
#include "ns3/traced-callback.h"

#include <unordered_map>
#include <vector>

namespace ns3
{

class Node;

/**
 * @ingroup ub-fabric
 * @brief The fabric as devices see it: one medium on which each can reach each.
 */
class UbChannel : public Channel
{
  public:
    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId();

    /**
     * @param [in] fabric The fabric.
     */
    void SetFabric(Ptr<UbFabric> fabric);

    /**
     * @return The fabric.
     */
    Ptr<UbFabric> GetFabric() const;

    /**
     * @param [in] device A device of an endpoint of the fabric.
     */
    void Add(Ptr<UbNetDevice> device);

    /**
     * @param [in] address An address.
     * @return The device that has it, nullptr if none.
     */
    Ptr<UbNetDevice> Find(const Mac48Address& address) const;

    // inherited from Channel
    std::size_t GetNDevices() const override;
    Ptr<NetDevice> GetDevice(std::size_t i) const override;

  protected:
    void DoDispose() override;

  private:
    Ptr<UbFabric> m_fabric;                  //!< the fabric
    std::vector<Ptr<UbNetDevice>> m_devices; //!< devices in the order they were added
};

/**
 * @ingroup ub-fabric
 * @brief Ordinary ns-3 packets on the fabric's queues.
 *
 * A device sits on an endpoint. What it sends shares ports, links, buffers and credits with the
 * flows of a replay; it keeps to one path a destination, since IP expects order. The fabric has
 * no broadcast: a broadcast or multicast packet is sent once to each other device.
 */
class UbNetDevice : public NetDevice
{
  public:
    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId();

    UbNetDevice();
    ~UbNetDevice() override;

    /**
     * Put the device on an endpoint of a fabric.
     * @param [in] channel The fabric's channel.
     * @param [in] endpoint Node number of the endpoint in the fabric.
     */
    void Attach(Ptr<UbChannel> channel, uint32_t endpoint);

    /// @return Node number of the endpoint in the fabric.
    uint32_t GetEndpoint() const;
    /// @return The network that its packets take.
    uint32_t GetNetwork() const;
    /// @return The virtual lane that its packets take.
    uint8_t GetLane() const;

    /**
     * A packet has arrived.
     * @param [in] packet The packet.
     * @param [in] protocol Its protocol.
     * @param [in] from The sender.
     * @param [in] to Whom it was sent to.
     */
    void Receive(Ptr<Packet> packet, uint16_t protocol, Ptr<UbNetDevice> from, Ptr<UbNetDevice> to);

    // inherited from NetDevice
    void SetIfIndex(const uint32_t index) override;
    uint32_t GetIfIndex() const override;
    Ptr<Channel> GetChannel() const override;
    void SetAddress(Address address) override;
    Address GetAddress() const override;
    bool SetMtu(const uint16_t mtu) override;
    uint16_t GetMtu() const override;
    bool IsLinkUp() const override;
    void AddLinkChangeCallback(Callback<void> callback) override;
    bool IsBroadcast() const override;
    Address GetBroadcast() const override;
    bool IsMulticast() const override;
    Address GetMulticast(Ipv4Address multicastGroup) const override;
    Address GetMulticast(Ipv6Address addr) const override;
    bool IsBridge() const override;
    bool IsPointToPoint() const override;
    bool Send(Ptr<Packet> packet, const Address& dest, uint16_t protocolNumber) override;
    bool SendFrom(Ptr<Packet> packet,
                  const Address& source,
                  const Address& dest,
                  uint16_t protocolNumber) override;
    Ptr<Node> GetNode() const override;
    void SetNode(Ptr<Node> node) override;
    bool NeedsArp() const override;
    void SetReceiveCallback(NetDevice::ReceiveCallback cb) override;
    void SetPromiscReceiveCallback(PromiscReceiveCallback cb) override;
    bool SupportsSendFrom() const override;

  protected:
    void DoDispose() override;

  private:
    Ptr<UbChannel> m_channel;             //!< the fabric's channel
    Ptr<Node> m_node;                     //!< the node it is on
    Mac48Address m_address;               //!< its address
    uint32_t m_endpoint{UB_NONE};         //!< endpoint in the fabric
    uint32_t m_ifIndex{0};                //!< interface number
    uint16_t m_mtu{0};                    //!< attribute
    uint32_t m_network{0};                //!< attribute
    uint8_t m_lane{0};                    //!< attribute
    NetDevice::ReceiveCallback m_receive; //!< whom to give packets
    PromiscReceiveCallback m_promiscuous; //!< whom to show packets
    TracedCallback<> m_linkChange;        //!< links of a fabric stay up, kept for the interface
    TracedCallback<Ptr<const Packet>> m_macTx;     //!< trace source
    TracedCallback<Ptr<const Packet>> m_macRx;     //!< trace source
    TracedCallback<Ptr<const Packet>> m_macTxDrop; //!< trace source
};

} // namespace ns3

#endif // UB_NET_DEVICE_H
