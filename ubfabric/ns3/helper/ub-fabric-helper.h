// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_FABRIC_HELPER_H
#define UB_FABRIC_HELPER_H

#include "ns3/data-rate.h"
#include "ns3/net-device-container.h"
#include "ns3/node-container.h"
#include "ns3/nstime.h"
#include "ns3/object-factory.h"
#include "ns3/ub-fabric.h"
#include "ns3/ub-net-device.h"

#include <map>
#include <string>
#include <vector>

namespace ns3
{

/// Parameters of an endpoint; a rate of 0 is no limit.
struct UbEndpointParameters
{
    uint32_t issueEngines{1};            //!< engines issuing messages, 1 to 64
    Time issueCost{0};                   //!< cost of each message
    DataRate engineRate{0};              //!< rate of one engine
    DataRate egressRate{0};              //!< rate into all ports
    Time receiveLatency{NanoSeconds(1)}; //!< last byte at the port to seen by the rank, above 0
    DataRate copyRate{0};                //!< rate to itself
    uint32_t bufferBytes{65536};         //!< input buffer a port and virtual lane
    Time memoryReadLatency{0};           //!< read request in to data out, 0: receiveLatency
    Time acknowledgeLatency{0};          //!< packet in to response out, 0: receiveLatency
    bool overlapsIssue{false};           //!< an engine prepares a message while it streams one
    uint32_t sdmaEngines{0};             //!< SDMA engines, for flows marked UB_BY_SDMA
    Time sdmaStart{0};                   //!< start-up cost of a transfer by SDMA
    DataRate sdmaRate{0};                //!< rate of one SDMA engine
    DataRate sdmaReadRate{0};            //!< rate at which another's SDMA engine reads it, 0: any
    DataRate sdmaWriteRate{0};           //!< the same of writes
};

/**
 * @ingroup ub-fabric
 * @brief Builds a fabric node by node in a C++ script, with its routes, and puts devices on it.
 *
 * Made for small fabrics: each endpoint is a destination class of its own. Python users have
 * NetworkX for this; see ubfabric.build_topology.
 */
class UbFabricHelper
{
  public:
    UbFabricHelper();

    /**
     * Set an attribute of the UbFabric that Build() makes.
     * @param [in] name The attribute.
     * @param [in] value Its value.
     */
    void SetFabricAttribute(const std::string& name, const AttributeValue& value);

    /**
     * Set an attribute of the UbNetDevices that Install() makes.
     * @param [in] name The attribute.
     * @param [in] value Its value.
     */
    void SetDeviceAttribute(const std::string& name, const AttributeValue& value);

    /**
     * @param [in] parameters What it is like.
     * @return Node number of the new endpoint.
     */
    uint32_t AddEndpoint(const UbEndpointParameters& parameters = {});

    /**
     * @param [in] forwardLatency Head in to head out.
     * @param [in] bufferBytes Input buffer a port and virtual lane.
     * @return Node number of the new switch.
     */
    uint32_t AddSwitch(Time forwardLatency, uint32_t bufferBytes);

    /**
     * Lay a cable.
     * @param [in] a A node.
     * @param [in] b Another; at most one switch's plane may differ from `plane`, and must not.
     * @param [in] plane Plane number.
     * @param [in] rate Rate of each direction.
     * @param [in] delay Propagation delay.
     */
    void Connect(uint32_t a, uint32_t b, uint32_t plane, DataRate rate, Time delay);

    /**
     * @param [in] plane Plane number.
     * @param [in] network Its network: 0 UB (the default), 1 RDMA, 2 VPC.
     */
    void SetNetwork(uint32_t plane, uint32_t network);

    /**
     * Find the shortest paths and make the fabric.
     * @return The fabric.
     */
    Ptr<UbFabric> Build();

    /**
     * Put a UbNetDevice on each of some nodes.
     * @param [in] fabric The fabric.
     * @param [in] nodes The ns-3 nodes.
     * @param [in] endpoints The endpoint of each node, by number in the fabric.
     * @return The devices.
     */
    NetDeviceContainer Install(Ptr<UbFabric> fabric,
                               const NodeContainer& nodes,
                               const std::vector<uint32_t>& endpoints);

  private:
    ObjectFactory m_fabricFactory;                      //!< makes the fabric
    ObjectFactory m_deviceFactory;                      //!< makes devices
    std::map<Ptr<UbFabric>, Ptr<UbChannel>> m_channels; //!< one channel a fabric

    std::vector<uint8_t> m_isEndpoint;  //!< by node
    std::vector<int64_t> m_forwardPs;   //!< by node
    std::vector<int64_t> m_bufferBytes; //!< by node
    std::vector<uint32_t> m_engines;    //!< by node
    std::vector<int64_t> m_issuePs;     //!< by node
    std::vector<uint64_t> m_engineRate; //!< by node
    std::vector<uint64_t> m_egressRate; //!< by node
    std::vector<int64_t> m_receivePs;   //!< by node
    std::vector<uint64_t> m_copyRate;   //!< by node
    std::vector<int64_t> m_memoryPs;    //!< by node
    std::vector<int64_t> m_answerPs;    //!< by node
    std::vector<uint8_t> m_overlaps;    //!< by node: an engine prepares while it streams
    std::vector<uint32_t> m_sdma;       //!< by node
    std::vector<int64_t> m_sdmaPs;      //!< by node
    std::vector<uint64_t> m_sdmaRate;   //!< by node
    std::vector<uint64_t> m_sdmaRead;   //!< by node: rate of another's engine
    std::vector<uint64_t> m_sdmaWrite;  //!< by node: rate of another's engine
    std::vector<uint32_t> m_linkSrc;    //!< by link
    std::vector<uint32_t> m_linkDst;    //!< by link
    std::vector<uint32_t> m_linkPlane;  //!< by link
    std::vector<uint64_t> m_linkRate;   //!< by link
    std::vector<int64_t> m_linkDelay;   //!< by link
    std::vector<uint32_t> m_network;    //!< by plane
};

} // namespace ns3

#endif // UB_FABRIC_HELPER_H
