// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-test-case.h"

#include "ns3/callback.h"
#include "ns3/mac48-address.h"
#include "ns3/node.h"
#include "ns3/packet.h"
#include "ns3/uinteger.h"

#include <map>

using namespace ns3;

namespace
{

/// Protocol number of the packets in these cases.
constexpr uint16_t PROTOCOL = 0x88b5;

/// Bytes that the fabric adds to a packet in these cases.
constexpr uint32_t HEADER_BYTES = 64;

/// Rate of the links in these cases, in bytes per second.
constexpr uint64_t RATE = 28'000'000'000;

} // namespace

/**
 * @ingroup ub-fabric-test
 * @brief Some nodes with devices on a fabric of several planes, and a log of what they receive.
 */
class UbDeviceTestCase : public UbTestCase
{
  public:
    /// @param [in] name What must hold.
    explicit UbDeviceTestCase(const std::string& name)
        : UbTestCase(name)
    {
    }

  protected:
    /// A packet as a node received it.
    struct Received
    {
        uint32_t node;     //!< the node
        uint32_t context;  //!< context of the event
        int64_t atPs;      //!< when
        uint32_t size;     //!< its size
        std::string text;  //!< its first bytes
        uint16_t protocol; //!< its protocol
        Address from;      //!< its sender
    };

    /**
     * Build a fabric with hubs and a device on each endpoint.
     * @param [in] nEndpoints Number of endpoints, all on each hub.
     * @param [in] nPlanes Number of planes, a hub each.
     */
    void Build(uint32_t nEndpoints, uint32_t nPlanes = 1)
    {
        UbFabricHelper helper;
        helper.SetFabricAttribute("UbTransport", UbTestPosted(HEADER_BYTES));
        helper.SetFabricAttribute("NumVirtualLanes", UintegerValue(2));
        helper.SetFabricAttribute("PathPolicy", StringValue("ns3::UbPathRandom"));
        helper.SetFabricAttribute("PlanePolicy", StringValue("ns3::UbPlaneRandom"));
        helper.SetDeviceAttribute("VirtualLane", UintegerValue(m_lane));
        UbEndpointParameters parameters;
        parameters.issueCost = NanoSeconds(500); // of messages; devices do not pay it
        parameters.receiveLatency = NanoSeconds(20);
        for (uint32_t i = 0; i < nEndpoints; ++i)
        {
            m_endpoints.push_back(helper.AddEndpoint(parameters));
        }
        for (uint32_t plane = 0; plane < nPlanes; ++plane)
        {
            const uint32_t hub = helper.AddSwitch(NanoSeconds(200), 65536);
            for (const uint32_t endpoint : m_endpoints)
            {
                // planes differ, so that packets on several of them would overtake each other
                helper.Connect(endpoint,
                               hub,
                               plane,
                               UbTestRate(RATE),
                               NanoSeconds(10 + 90 * plane));
            }
        }
        m_fabric = helper.Build();
        m_nodes.Create(nEndpoints);
        m_devices = helper.Install(m_fabric, m_nodes, m_endpoints);
        for (uint32_t i = 0; i < nEndpoints; ++i)
        {
            m_nodes.Get(i)->RegisterProtocolHandler(MakeCallback(&UbDeviceTestCase::Receive, this),
                                                    PROTOCOL,
                                                    m_devices.Get(i));
            m_devices.Get(i)->TraceConnectWithoutContext(
                "MacTxDrop",
                MakeCallback(&UbDeviceTestCase::Drop, this));
            m_devices.Get(i)->TraceConnectWithoutContext(
                "MacTx",
                MakeCallback(&UbDeviceTestCase::Transmit, this));
            m_devices.Get(i)->TraceConnectWithoutContext(
                "MacRx",
                MakeCallback(&UbDeviceTestCase::Arrive, this));
        }
    }

    /**
     * Send a packet.
     * @param [in] from Number of the sending device.
     * @param [in] to Address of the receiver.
     * @param [in] text First bytes of the packet.
     * @param [in] size Bytes of the packet, not less than the text.
     * @return Whether the device took it.
     */
    bool Send(uint32_t from, const Address& to, const std::string& text, uint32_t size)
    {
        std::string content = text;
        content.resize(size);
        const auto packet = Create<Packet>(reinterpret_cast<const uint8_t*>(content.data()), size);
        return m_devices.Get(from)->Send(packet, to, PROTOCOL);
    }

    /**
     * @param [in] i Number of a device.
     * @return Its address.
     */
    Address AddressOf(uint32_t i) const
    {
        return m_devices.Get(i)->GetAddress();
    }

    /**
     * @param [in] size Bytes of a packet.
     * @return Time that a lone packet takes in plane 0.
     */
    static int64_t LonePs(uint32_t size)
    {
        return 2 * 10'000 + 200'000 + UbTestWirePs(size + HEADER_BYTES, RATE) + 20'000;
    }

    void DoTeardown() override
    {
        if (m_fabric)
        {
            m_fabric->Dispose();
            m_fabric = nullptr;
        }
        m_devices = NetDeviceContainer();
        m_nodes = NodeContainer();
        UbTestCase::DoTeardown();
    }

    Ptr<UbFabric> m_fabric;            //!< the fabric
    NodeContainer m_nodes;             //!< a node for each endpoint
    NetDeviceContainer m_devices;      //!< its device
    std::vector<uint32_t> m_endpoints; //!< number of the endpoint in the fabric
    std::vector<Received> m_received;  //!< what nodes received
    uint32_t m_nDropped{0};            //!< packets that devices refused
    uint32_t m_nSent{0};               //!< packets that devices took
    uint32_t m_nArrived{0};            //!< packets that devices received
    uint32_t m_lane{0};                //!< virtual lane of the devices

  private:
    /**
     * A node receives a packet.
     * @param [in] device Its device.
     * @param [in] packet The packet.
     * @param [in] protocol Its protocol.
     * @param [in] from Its sender.
     */
    void Receive(Ptr<NetDevice> device,
                 Ptr<const Packet> packet,
                 uint16_t protocol,
                 const Address& from,
                 const Address& /* to */,
                 NetDevice::PacketType /* type */)
    {
        std::string text(8, 0);
        text.resize(packet->CopyData(reinterpret_cast<uint8_t*>(text.data()), 8));
        m_received.push_back({device->GetNode()->GetId() - m_nodes.Get(0)->GetId(),
                              Simulator::GetContext() - m_nodes.Get(0)->GetId(),
                              Simulator::Now().GetTimeStep(),
                              packet->GetSize(),
                              text.c_str(),
                              protocol,
                              from});
    }

    /// A device refuses a packet.
    void Drop(Ptr<const Packet> /* packet */)
    {
        ++m_nDropped;
    }

    /// A device takes a packet.
    void Transmit(Ptr<const Packet> /* packet */)
    {
        ++m_nSent;
    }

    /// A device receives a packet.
    void Arrive(Ptr<const Packet> /* packet */)
    {
        ++m_nArrived;
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief One packet each way.
 */
class UbDevicePacketTestCase : public UbDeviceTestCase
{
  public:
    UbDevicePacketTestCase()
        : UbDeviceTestCase("a packet is carried whole, in the time of its bytes, to its receiver "
                           "only")
    {
    }

  private:
    void DoRun() override
    {
        Build(3);
        Simulator::Schedule(MicroSeconds(1), [this] { Send(0, AddressOf(2), "hello", 1500); });
        Simulator::Schedule(MicroSeconds(9), [this] { Send(2, AddressOf(0), "back", 4); });
        Simulator::Run();
        NS_TEST_ASSERT_MSG_EQ(m_received.size(), 2, "packets");
        const Received& there = m_received[0];
        NS_TEST_ASSERT_MSG_EQ(there.node, 2, "receiver");
        NS_TEST_ASSERT_MSG_EQ(there.context, 2, "context is the node's");
        NS_TEST_ASSERT_MSG_EQ(there.atPs, 1'000'000 + LonePs(1500), "time");
        NS_TEST_ASSERT_MSG_EQ(there.size, 1500, "size");
        NS_TEST_ASSERT_MSG_EQ(there.text, "hello", "content");
        NS_TEST_ASSERT_MSG_EQ(there.protocol, PROTOCOL, "protocol");
        NS_TEST_ASSERT_MSG_EQ(there.from, AddressOf(0), "sender");
        NS_TEST_ASSERT_MSG_EQ(m_received[1].node, 0, "receiver of the way back");
        NS_TEST_ASSERT_MSG_EQ(m_received[1].atPs, 9'000'000 + LonePs(4), "time of the way back");
        NS_TEST_ASSERT_MSG_EQ(m_received[1].text, "back", "content of the way back");
        NS_TEST_ASSERT_MSG_EQ(m_nSent, 2, "MacTx");
        NS_TEST_ASSERT_MSG_EQ(m_nArrived, 2, "MacRx");
        NS_TEST_ASSERT_MSG_EQ(m_nDropped, 0, "MacTxDrop");
        NS_TEST_ASSERT_MSG_EQ(m_fabric->Leftover(), "", "left over");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Packets that cannot be sent.
 */
class UbDeviceDropTestCase : public UbDeviceTestCase
{
  public:
    UbDeviceDropTestCase()
        : UbDeviceTestCase("a packet too large, to itself, or to an unknown address is refused "
                           "and traced")
    {
    }

  private:
    void DoRun() override
    {
        Build(2);
        NS_TEST_ASSERT_MSG_EQ(Send(0, AddressOf(1), "", 1501), false, "above the MTU of 1500");
        NS_TEST_ASSERT_MSG_EQ(Send(0, Mac48Address("00:00:00:00:aa:aa"), "", 9), false, "unknown");
        NS_TEST_ASSERT_MSG_EQ(Send(0, AddressOf(0), "", 9), false, "itself");
        NS_TEST_ASSERT_MSG_EQ(m_nDropped, 3, "MacTxDrop");
        m_devices.Get(0)->SetAttribute("Network", UintegerValue(2));
        NS_TEST_ASSERT_MSG_EQ(Send(0, AddressOf(1), "", 9), false, "no plane of that network");
        NS_TEST_ASSERT_MSG_EQ(m_nDropped, 4, "MacTxDrop");
        m_devices.Get(0)->SetAttribute("Network", UintegerValue(0));
        NS_TEST_ASSERT_MSG_EQ(m_devices.Get(0)->SetMtu(4097), false, "above the payload of 4096");
        NS_TEST_ASSERT_MSG_EQ(m_devices.Get(0)->GetMtu(), 1500, "MTU is as before");
        NS_TEST_ASSERT_MSG_EQ(m_devices.Get(0)->SetMtu(4096), true, "the payload");
        NS_TEST_ASSERT_MSG_EQ(Send(0, AddressOf(1), "", 4096), true, "fits now");
        Simulator::Run();
        NS_TEST_ASSERT_MSG_EQ(m_received.size(), 1, "one arrived");
        NS_TEST_ASSERT_MSG_EQ(m_received[0].size, 4096, "whole");
        NS_TEST_ASSERT_MSG_EQ(m_nSent, 1, "MacTx");
        NS_TEST_ASSERT_MSG_EQ(m_fabric->Leftover(), "", "left over");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Broadcast.
 */
class UbDeviceBroadcastTestCase : public UbDeviceTestCase
{
  public:
    UbDeviceBroadcastTestCase()
        : UbDeviceTestCase("a broadcast or multicast is one copy to each other device, one after "
                           "another")
    {
    }

  private:
    void DoRun() override
    {
        Build(5);
        const Address group = m_devices.Get(0)->GetMulticast(Ipv4Address("224.0.0.5"));
        for (const Address& to : {m_devices.Get(1)->GetBroadcast(), group})
        {
            m_received.clear();
            const int64_t now = Simulator::Now().GetTimeStep();
            NS_TEST_ASSERT_MSG_EQ(Send(1, to, "all", 1000), true, "taken");
            Simulator::Run();
            NS_TEST_ASSERT_MSG_EQ(m_received.size(), 4, "copies");
            const uint32_t receivers[] = {0, 2, 3, 4};
            for (uint32_t i = 0; i < 4; ++i)
            {
                NS_TEST_ASSERT_MSG_EQ(m_received[i].node, receivers[i], "receiver of copy " << i);
                NS_TEST_ASSERT_MSG_EQ(m_received[i].text, "all", "content of copy " << i);
                // the sender's port carries one copy after another
                NS_TEST_ASSERT_MSG_EQ(m_received[i].atPs,
                                      now + LonePs(1000) +
                                          i * UbTestWirePs(1000 + HEADER_BYTES, RATE),
                                      "time of copy " << i);
            }
        }
        NS_TEST_ASSERT_MSG_EQ(m_nSent, 2, "MacTx, once a packet");
        NS_TEST_ASSERT_MSG_EQ(m_fabric->Leftover(), "", "left over");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Order and sharing with a replay.
 */
class UbDeviceBesideReplayTestCase : public UbDeviceTestCase
{
  public:
    /// @param [in] lane Virtual lane of the devices; the replay uses lane 0.
    explicit UbDeviceBesideReplayTestCase(uint32_t lane)
        : UbDeviceTestCase("packets of a pair keep their order beside a replay that they share "
                           "ports with, lane " +
                           std::to_string(lane))
    {
        m_lane = lane;
    }

  private:
    void DoRun() override
    {
        constexpr uint32_t nPlanes = 3;
        Build(6, nPlanes);
        UbTestChunk chunk;
        for (uint32_t i = 0; i < 6; ++i)
        {
            for (uint32_t j = 0; j < 6; ++j)
            {
                chunk.AddFlow(m_endpoints[i], m_endpoints[j], 40, 4096);
            }
        }
        m_fabric->AddChunk(chunk.Arrays());
        constexpr uint32_t nPackets = 100;
        for (uint32_t k = 0; k < nPackets; ++k)
        {
            for (uint32_t i = 0; i < 6; ++i)
            {
                Simulator::Schedule(NanoSeconds(100 * k), [this, i, k] {
                    Send(i, AddressOf((i + 1) % 6), std::to_string(k), 40 + (k * 37) % 1400);
                    Send(i, AddressOf((i + 3) % 6), std::to_string(k), 40 + (k * 53) % 1400);
                });
            }
        }
        Simulator::Run();
        NS_TEST_ASSERT_MSG_EQ(m_received.size(), 6 * 2 * nPackets, "all arrived");
        std::map<std::pair<uint32_t, Address>, uint32_t> next;
        int64_t last = 0;
        int64_t slowest = 0;
        for (const Received& packet : m_received)
        {
            uint32_t& expected = next[{packet.node, packet.from}];
            NS_TEST_ASSERT_MSG_EQ(packet.text, std::to_string(expected), "order of a pair");
            slowest = std::max(slowest, packet.atPs - 100'000 * int64_t{expected});
            ++expected;
            NS_TEST_ASSERT_MSG_GT_OR_EQ(packet.atPs, last, "time runs back");
            last = packet.atPs;
        }
        NS_TEST_ASSERT_MSG_EQ(next.size(), 12, "pairs");
        // the slowest plane has 100 ns a cable more than the one of LonePs()
        NS_TEST_ASSERT_MSG_GT(slowest,
                              LonePs(1500) + 2 * 90'000 * (nPlanes - 1) + 100'000,
                              "they had to wait for packets of the replay");
        std::vector<UbLinkStats> stats;
        m_fabric->ReadLinkStats(stats);
        uint64_t packets = 0;
        for (const UbLinkStats& link : stats)
        {
            packets += link.packets;
        }
        NS_TEST_ASSERT_MSG_EQ(packets,
                              2 * (6 * 5 * 40 + 6 * 2 * nPackets),
                              "flows and devices share the links");
        NS_TEST_ASSERT_MSG_EQ(m_fabric->GetBytesDelivered(),
                              36 * 40 * 4096,
                              "bytes of flows do not count devices");
        NS_TEST_ASSERT_MSG_EQ(m_fabric->Leftover(), "", "left over");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief The same with both simulators.
 */
class UbDeviceSameTimesTestCase : public UbDeviceTestCase
{
  public:
    UbDeviceSameTimesTestCase()
        : UbDeviceTestCase("devices and flows have the same times under UbSimulatorImpl and "
                           "DefaultSimulatorImpl")
    {
    }

  private:
    /**
     * @param [in] implementation TypeId of the SimulatorImpl.
     * @return Times of what arrived.
     */
    std::vector<int64_t> Times(const std::string& implementation)
    {
        UbStartSimulation(implementation);
        m_received.clear();
        m_endpoints.clear();
        m_nodes = NodeContainer();
        Build(4, 2);
        UbTestChunk chunk;
        for (uint32_t i = 0; i < 4; ++i)
        {
            chunk.AddFlow(m_endpoints[i], m_endpoints[3 - i], 30, 5000, 777 * i);
        }
        m_fabric->AddChunk(chunk.Arrays());
        for (uint32_t k = 0; k < 200; ++k)
        {
            // odd times, so that no packet is sent at the very instant of an event of the fabric
            Simulator::Schedule(PicoSeconds(33'331 * k + 11), [this, k] {
                Send(k % 4, AddressOf((k + 1) % 4), std::to_string(k), 100 + k);
            });
        }
        Simulator::Run();
        NS_TEST_EXPECT_MSG_EQ(m_received.size(), 200, "packets");
        NS_TEST_EXPECT_MSG_EQ(m_fabric->Leftover(), "", "left over");
        std::vector<int64_t> times;
        for (const Received& packet : m_received)
        {
            times.push_back(packet.atPs);
            times.push_back(packet.node);
            times.push_back(std::stoi(packet.text));
        }
        for (const UbFlowRecord& flow : chunk.flows)
        {
            times.push_back(flow.finishPs);
        }
        m_fabric->Dispose();
        m_fabric = nullptr;
        return times;
    }

    void DoRun() override
    {
        const auto windows = Times("ns3::UbSimulatorImpl");
        NS_TEST_ASSERT_MSG_EQ((Times("ns3::DefaultSimulatorImpl") == windows), true, "times");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief The device as ns-3 sees it.
 */
class UbDeviceInterfaceTestCase : public UbDeviceTestCase
{
  public:
    UbDeviceInterfaceTestCase()
        : UbDeviceTestCase("a device tells what it is, and refuses packets when its fabric is gone")
    {
    }

  private:
    void DoRun() override
    {
        Build(2);
        const auto device = m_devices.Get(1);
        NS_TEST_ASSERT_MSG_EQ(device->GetNode(), m_nodes.Get(1), "node");
        NS_TEST_ASSERT_MSG_EQ(m_nodes.Get(1)->GetDevice(device->GetIfIndex()), device, "index");
        NS_TEST_ASSERT_MSG_EQ(device->GetChannel()->GetNDevices(), 2, "devices of the channel");
        NS_TEST_ASSERT_MSG_EQ(device->GetChannel()->GetDevice(1), device, "device of the channel");
        NS_TEST_ASSERT_MSG_EQ(device->IsLinkUp(), true, "up");
        NS_TEST_ASSERT_MSG_EQ(device->NeedsArp(), true, "ARP");
        NS_TEST_ASSERT_MSG_EQ(device->IsBroadcast(), true, "broadcast");
        NS_TEST_ASSERT_MSG_EQ(device->IsMulticast(), true, "multicast");
        NS_TEST_ASSERT_MSG_EQ(device->IsPointToPoint(), false, "not point to point");
        NS_TEST_ASSERT_MSG_EQ(device->IsBridge(), false, "no bridge");
        NS_TEST_ASSERT_MSG_EQ(device->SupportsSendFrom(), false, "no SendFrom");
        device->SetAddress(Mac48Address("00:00:00:00:00:77"));
        NS_TEST_ASSERT_MSG_EQ(Send(0, Mac48Address("00:00:00:00:00:77"), "x", 9), true, "found");
        Simulator::Run();
        NS_TEST_ASSERT_MSG_EQ(m_received.size(), 1, "arrived");
        m_fabric->Dispose();
        NS_TEST_ASSERT_MSG_EQ(Send(0, Mac48Address("00:00:00:00:00:77"), "x", 9), false, "gone");
    }
};

/**
 * @ingroup ub-fabric-test
 * @brief Suite of the device.
 */
class UbNetDeviceTestSuite : public TestSuite
{
  public:
    UbNetDeviceTestSuite()
        : TestSuite("ub-net-device", Type::UNIT)
    {
        AddTestCase(new UbDevicePacketTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbDeviceDropTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbDeviceBroadcastTestCase, TestCase::Duration::QUICK);
        for (const uint32_t lane : {0U, 1U})
        {
            AddTestCase(new UbDeviceBesideReplayTestCase(lane), TestCase::Duration::QUICK);
        }
        AddTestCase(new UbDeviceSameTimesTestCase, TestCase::Duration::QUICK);
        AddTestCase(new UbDeviceInterfaceTestCase, TestCase::Duration::QUICK);
    }
};

static UbNetDeviceTestSuite g_ubNetDeviceTestSuite; ///< registers the suite
