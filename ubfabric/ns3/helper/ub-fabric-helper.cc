// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-fabric-helper.h"

#include "ns3/abort.h"
#include "ns3/node.h"

#include <algorithm>
#include <deque>
#include <limits>

namespace ns3
{

UbFabricHelper::UbFabricHelper()
{
    m_fabricFactory.SetTypeId("ns3::UbFabric");
    m_deviceFactory.SetTypeId("ns3::UbNetDevice");
}

void
UbFabricHelper::SetFabricAttribute(const std::string& name, const AttributeValue& value)
{
    m_fabricFactory.Set(name, value);
}

void
UbFabricHelper::SetDeviceAttribute(const std::string& name, const AttributeValue& value)
{
    m_deviceFactory.Set(name, value);
}

uint32_t
UbFabricHelper::AddEndpoint(const UbEndpointParameters& parameters)
{
    m_isEndpoint.push_back(1);
    m_forwardPs.push_back(0);
    m_bufferBytes.push_back(parameters.bufferBytes);
    m_engines.push_back(parameters.issueEngines);
    m_issuePs.push_back(parameters.issueCost.GetPicoSeconds());
    m_engineRate.push_back(parameters.engineRate.GetBitRate() / 8);
    m_egressRate.push_back(parameters.egressRate.GetBitRate() / 8);
    m_receivePs.push_back(parameters.receiveLatency.GetPicoSeconds());
    m_copyRate.push_back(parameters.copyRate.GetBitRate() / 8);
    const auto orReceive = [&parameters](Time latency) {
        return (latency.IsZero() ? parameters.receiveLatency : latency).GetPicoSeconds();
    };
    m_memoryPs.push_back(orReceive(parameters.memoryReadLatency));
    m_answerPs.push_back(orReceive(parameters.acknowledgeLatency));
    m_overlaps.push_back(parameters.overlapsIssue ? 1 : 0);
    m_sdma.push_back(parameters.sdmaEngines);
    m_sdmaPs.push_back(parameters.sdmaStart.GetPicoSeconds());
    m_sdmaRate.push_back(parameters.sdmaRate.GetBitRate() / 8);
    m_sdmaRead.push_back(parameters.sdmaReadRate.GetBitRate() / 8);
    m_sdmaWrite.push_back(parameters.sdmaWriteRate.GetBitRate() / 8);
    return static_cast<uint32_t>(m_isEndpoint.size() - 1);
}

uint32_t
UbFabricHelper::AddSwitch(Time forwardLatency, uint32_t bufferBytes)
{
    const uint32_t node = AddEndpoint({});
    m_isEndpoint[node] = 0;
    m_forwardPs[node] = forwardLatency.GetPicoSeconds();
    m_bufferBytes[node] = bufferBytes;
    return node;
}

void
UbFabricHelper::Connect(uint32_t a, uint32_t b, uint32_t plane, DataRate rate, Time delay)
{
    for (const auto& [src, dst] : {std::pair(a, b), std::pair(b, a)})
    {
        m_linkSrc.push_back(src);
        m_linkDst.push_back(dst);
        m_linkPlane.push_back(plane);
        m_linkRate.push_back(rate.GetBitRate() / 8);
        m_linkDelay.push_back(delay.GetPicoSeconds());
    }
    if (m_network.size() <= plane)
    {
        m_network.resize(plane + 1, 0);
    }
}

void
UbFabricHelper::SetNetwork(uint32_t plane, uint32_t network)
{
    if (m_network.size() <= plane)
    {
        m_network.resize(plane + 1, 0);
    }
    m_network[plane] = network;
}

Ptr<UbFabric>
UbFabricHelper::Build()
{
    const auto nNodes = static_cast<uint32_t>(m_isEndpoint.size());
    const auto nLinks = static_cast<uint32_t>(m_linkSrc.size());
    const auto nPlanes = static_cast<uint32_t>(m_network.size());
    const auto at = [nNodes](uint32_t plane, uint32_t node) {
        return uint64_t{plane} * nNodes + node;
    };

    std::vector<int32_t> endpointClass(uint64_t{nPlanes} * nNodes, -1);
    std::vector<int32_t> endpointSlot(uint64_t{nPlanes} * nNodes, -1);
    std::vector<int64_t> endpointOut(uint64_t{nPlanes} * nNodes, -1);
    std::vector<uint32_t> nClasses(nPlanes, 0);
    std::vector<int64_t> switchRow(nNodes, -1);
    std::vector<uint32_t> planeOfSwitch(nNodes, std::numeric_limits<uint32_t>::max());
    std::vector<int32_t> table;
    std::vector<int32_t> local;
    std::vector<uint32_t> groupStart{0};
    std::vector<uint32_t> groupLink;
    std::vector<std::vector<uint32_t>> out(nNodes);
    for (uint32_t link = 0; link < nLinks; ++link)
    {
        const uint32_t src = m_linkSrc[link];
        const uint32_t dst = m_linkDst[link];
        out[src].push_back(link);
        if (m_isEndpoint[src] && !m_isEndpoint[dst] &&
            endpointClass[at(m_linkPlane[link], src)] < 0)
        {
            endpointClass[at(m_linkPlane[link], src)] =
                static_cast<int32_t>(nClasses[m_linkPlane[link]]++);
            endpointSlot[at(m_linkPlane[link], src)] = 0;
        }
        if (!m_isEndpoint[src])
        {
            NS_ABORT_MSG_IF(planeOfSwitch[src] != std::numeric_limits<uint32_t>::max() &&
                                planeOfSwitch[src] != m_linkPlane[link],
                            "switch " << src << " has cables of two planes");
            planeOfSwitch[src] = m_linkPlane[link];
        }
    }
    const auto addGroup = [&](const std::vector<uint32_t>& links) {
        const auto group = static_cast<int32_t>(groupStart.size() - 1);
        groupLink.insert(groupLink.end(), links.begin(), links.end());
        groupStart.push_back(static_cast<uint32_t>(groupLink.size()));
        return group;
    };
    // per plane: distances of all nodes to each endpoint, then the links that come closer
    constexpr uint32_t far = std::numeric_limits<uint32_t>::max();
    for (uint32_t plane = 0; plane < nPlanes; ++plane)
    {
        std::vector<std::vector<uint32_t>> distance(nClasses[plane]);
        for (uint32_t node = 0; node < nNodes; ++node)
        {
            const int32_t destination = endpointClass[at(plane, node)];
            if (destination < 0)
            {
                continue;
            }
            std::vector<uint32_t>& d = distance[destination];
            d.assign(nNodes, far);
            d[node] = 0;
            std::deque<uint32_t> todo{node};
            while (!todo.empty())
            {
                const uint32_t here = todo.front();
                todo.pop_front();
                if (here != node && m_isEndpoint[here])
                {
                    continue; // endpoints do not forward
                }
                for (const uint32_t link : out[here])
                {
                    const uint32_t next = m_linkDst[link];
                    const bool isDirect = m_isEndpoint[here] && m_isEndpoint[next];
                    if (m_linkPlane[link] == plane && d[next] == far && !isDirect)
                    {
                        d[next] = d[here] + 1;
                        todo.push_back(next);
                    }
                }
            }
        }
        std::map<std::vector<uint32_t>, int32_t> groups;
        for (uint32_t node = 0; node < nNodes; ++node)
        {
            const bool isSource = endpointClass[at(plane, node)] >= 0;
            if (!isSource && planeOfSwitch[node] != plane)
            {
                continue;
            }
            (isSource ? endpointOut[at(plane, node)] : switchRow[node]) =
                static_cast<int64_t>(table.size());
            for (uint32_t c = 0; c < nClasses[plane]; ++c)
            {
                std::vector<uint32_t> links;
                for (const uint32_t link : out[node])
                {
                    const uint32_t next = m_linkDst[link];
                    const bool isDirect = m_isEndpoint[node] && m_isEndpoint[next];
                    if (m_linkPlane[link] == plane && !isDirect && distance[c][next] != far &&
                        distance[c][next] + 1 == distance[c][node])
                    {
                        links.push_back(link);
                    }
                }
                if (links.empty())
                {
                    table.push_back(-1);
                    continue;
                }
                const auto [found, isNew] = groups.try_emplace(links, 0);
                if (isNew)
                {
                    found->second = addGroup(links);
                }
                table.push_back(found->second);
            }
        }
    }

    std::vector<uint32_t> directStart(1, 0);
    std::vector<uint32_t> directDst;
    std::vector<uint32_t> directLink;
    for (uint32_t node = 0; node < nNodes; ++node)
    {
        for (const uint32_t link : out[node])
        {
            if (m_isEndpoint[node] && m_isEndpoint[m_linkDst[link]])
            {
                directDst.push_back(m_linkDst[link]);
                directLink.push_back(link);
            }
        }
        directStart.push_back(static_cast<uint32_t>(directDst.size()));
    }

    UbFabricArrays arrays;
    arrays.nNodes = nNodes;
    arrays.nodeIsEndpoint = m_isEndpoint.data();
    arrays.nodeForwardLatencyPs = m_forwardPs.data();
    arrays.nodeBufferBytes = m_bufferBytes.data();
    arrays.nodeIssueEngines = m_engines.data();
    arrays.nodeIssueCostPs = m_issuePs.data();
    arrays.nodeEngineBytesPerS = m_engineRate.data();
    arrays.nodeEgressBytesPerS = m_egressRate.data();
    arrays.nodeReceiveLatencyPs = m_receivePs.data();
    arrays.nodeCopyBytesPerS = m_copyRate.data();
    arrays.nodeMemoryReadLatencyPs = m_memoryPs.data();
    arrays.nodeAcknowledgeLatencyPs = m_answerPs.data();
    arrays.nodeOverlapsIssue = m_overlaps.data();
    arrays.nodeSdmaEngines = m_sdma.data();
    arrays.nodeSdmaStartPs = m_sdmaPs.data();
    arrays.nodeSdmaBytesPerS = m_sdmaRate.data();
    arrays.nodeSdmaReadBytesPerS = m_sdmaRead.data();
    arrays.nodeSdmaWriteBytesPerS = m_sdmaWrite.data();
    arrays.nLinks = nLinks;
    arrays.linkSrc = m_linkSrc.data();
    arrays.linkDst = m_linkDst.data();
    arrays.linkPlane = m_linkPlane.data();
    arrays.linkBytesPerS = m_linkRate.data();
    arrays.linkDelayPs = m_linkDelay.data();
    arrays.nPlanes = nPlanes;
    arrays.planeNetwork = m_network.data();
    arrays.planeNClasses = nClasses.data();
    arrays.endpointClass = endpointClass.data();
    arrays.endpointSlot = endpointSlot.data();
    arrays.endpointOut = endpointOut.data();
    arrays.switchRow = switchRow.data();
    arrays.nTable = table.size();
    arrays.table = table.data();
    arrays.nLocal = local.size();
    arrays.local = local.data();
    arrays.nGroups = static_cast<uint32_t>(groupStart.size() - 1);
    arrays.groupStart = groupStart.data();
    arrays.groupLink = groupLink.data();
    arrays.directStart = directStart.data();
    arrays.directDst = directDst.data();
    arrays.directLink = directLink.data();

    const auto fabric = m_fabricFactory.Create<UbFabric>();
    fabric->Build(arrays);
    return fabric;
}

NetDeviceContainer
UbFabricHelper::Install(Ptr<UbFabric> fabric,
                        const NodeContainer& nodes,
                        const std::vector<uint32_t>& endpoints)
{
    NS_ABORT_MSG_IF(nodes.GetN() != endpoints.size(),
                    "there are " << nodes.GetN() << " nodes and " << endpoints.size()
                                 << " endpoints");
    Ptr<UbChannel>& channel = m_channels[fabric];
    if (!channel)
    {
        channel = CreateObject<UbChannel>();
        channel->SetFabric(fabric);
    }
    NetDeviceContainer devices;
    for (uint32_t i = 0; i < nodes.GetN(); ++i)
    {
        const auto device = m_deviceFactory.Create<UbNetDevice>();
        NS_ABORT_MSG_IF(device->GetMtu() > fabric->GetPayloadBytes(),
                        "an MTU of " << device->GetMtu() << " does not fit a packet of "
                                     << fabric->GetPayloadBytes() << " bytes");
        device->Attach(channel, endpoints[i]);
        nodes.Get(i)->AddDevice(device);
        devices.Add(device);
    }
    return devices;
}

} // namespace ns3
